"""What `report` does: runs side by side on one page."""
