"""Words in, structure out: tags, tokenizers, planned documents and their integer layout."""
