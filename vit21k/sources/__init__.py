"""Where image bytes come from: folders and archives, read in place."""
