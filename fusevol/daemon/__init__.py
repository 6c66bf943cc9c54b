"""The daemon, `fusevol serve`: what answers on sockets, and watches over mounts.

    serve     puts it all together      listen   its sockets        work        operations, bounded
    rest      the REST API              metrics  for Prometheus     supervisor  mounts that die
    service   the systemd unit          http     JSON over HTTP     known       numbers at hand

It has no state of its own: records and mounts are there without it, and it may be ended at any moment.
"""
