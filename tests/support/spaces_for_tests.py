"""A search space with every type of option."""

EVERY_TYPE = {
    "choice": {"_type": "choice", "_value": ["a", "b"]},
    "nested": {
        "_type": "choice",
        "_value": [
            {"_name": "one", "inner": {"_type": "loguniform", "_value": [0.001, 0.1]}},
            {"_name": "two", "other": {"_type": "randint", "_value": [3, 6]}},
            {"_name": "none"},
        ],
    },
    "randint": {"_type": "randint", "_value": [-2, 9]},
    "uniform": {"_type": "uniform", "_value": [-1, 1]},
    "quniform": {"_type": "quniform", "_value": [0.1, 0.95, 0.1]},
    "loguniform": {"_type": "loguniform", "_value": [0.0003, 0.7]},
    "qloguniform": {"_type": "qloguniform", "_value": [1, 100, 5]},
    "normal": {"_type": "normal", "_value": [3, 0.5]},
    "qnormal": {"_type": "qnormal", "_value": [3, 0.5, 0.25]},
    "lognormal": {"_type": "lognormal", "_value": [0, 1]},
    "qlognormal": {"_type": "qlognormal", "_value": [4, 0.5, 0.5]},
}
