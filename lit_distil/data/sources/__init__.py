"""Where text comes from: documents and labelled rows."""
