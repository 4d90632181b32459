"""Corpora of planned documents: one whose truth is known, one of real text, and the annotator between them."""
