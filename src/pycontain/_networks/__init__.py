"""Networks: links, addresses, the firewall, ports and names."""
