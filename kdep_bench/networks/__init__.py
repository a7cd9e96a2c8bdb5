"""Code for teachers and students: builds backbones, reads features before the last activation."""
