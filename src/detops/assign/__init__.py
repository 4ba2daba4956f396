"""Which box each point of a dense head is trained on."""
