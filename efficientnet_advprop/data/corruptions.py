"""placeholder"""
CORRUPTIONS = {}
def corrupt(*a, **k): raise NotImplementedError
