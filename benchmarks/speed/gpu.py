from benchmarks.speed.contest import Contest


def questions() -> list[Contest]:
    return []
