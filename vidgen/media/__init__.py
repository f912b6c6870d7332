"""Files a person looks at or listens to: video, audio, pictures, and the report page."""
