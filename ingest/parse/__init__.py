"""One module a family of formats: each turns a file into a document's text, elements and places."""
