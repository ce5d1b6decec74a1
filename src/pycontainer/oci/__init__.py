"""The documents of the Open Container Initiative, as typed values: images and container configurations."""
