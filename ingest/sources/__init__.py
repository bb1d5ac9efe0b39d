"""Watched places whose files are kept as documents of a collection: folders, buckets, shares, sites, repositories."""
