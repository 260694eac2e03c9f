"""The maintenance page: a switch in the load balancer, prepared before go-live and thrown in milliseconds."""
