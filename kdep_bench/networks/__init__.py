"""Code shared by teachers and students: building a backbone, reading a pre-activation feature."""
