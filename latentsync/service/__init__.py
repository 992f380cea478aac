"""The task API that one hosts oneself: tasks over HTTP, workers, files."""
