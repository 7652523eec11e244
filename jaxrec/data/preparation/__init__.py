"""From raw files to prepared data: download, filter, number the ids, split, write."""
