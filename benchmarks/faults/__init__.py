"""The fault benchmark: small trainings with a planted fault, their twins without it, and healthy ones."""
