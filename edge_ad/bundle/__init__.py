"""The deployable artefact: manifest, reading, writing, integrity."""
