"""What all experiments share: protocol, endpoints, ledger, drawing, report and command line."""
