"""Small networks that ship."""
