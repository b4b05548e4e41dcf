"""`python -m efficientnet_advprop` lists the programs, as `advprop` does."""

from efficientnet_advprop.command_line.advprop import main

main()
