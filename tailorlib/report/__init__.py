"""Tables and pictures of a study."""
