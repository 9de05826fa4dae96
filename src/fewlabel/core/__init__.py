"""Types, masks, files and errors that every room shares."""
