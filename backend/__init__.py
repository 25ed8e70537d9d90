"""The rim of Ask First: HTTP, the job queue and Label Studio. Decides nothing numeric."""
