"""Studies of several conditions: named sets of settings, each trained from several seeds."""
