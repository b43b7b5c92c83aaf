"""Any video: read foreign footage, write playable files, carry sound and time along."""
