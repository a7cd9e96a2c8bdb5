"""Networks and hooks for teachers, students and objectives: backbones, features, attention."""
