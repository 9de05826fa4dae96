"""Reading, checking, splitting, augmenting and synthesising images with their labels."""
