"""Instance masks: small masks in boxes."""
