"""Raw files -> prepared data: download, filters, ids, splits."""
