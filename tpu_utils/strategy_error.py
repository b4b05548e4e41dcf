"""What goes wrong before anything is computed: devices, machines and addresses that are not as asked for."""


class StrategyError(ValueError):
    """The devices asked for are not to be had; the message says what was asked for and what to do."""
