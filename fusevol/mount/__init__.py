"""How a volume is served: the FUSE session, without knowing what is in it.

    process     a mount in a process of its own, and how its start and end are reported
      └── session      mount, serve, unmount; helpers for caches of the kernel
            ├── handshake    INIT: the flags and limits of the connection
            │     └── protocol     the bytes of INIT, from linux/fuse.h
            ├── extra        handlers that pyfuse3 does not have: fallocate, lseek
            ├── kernel       what is asked of the kernel about a mount
            │     └── beside       by another process, where it waits for this one: attendant
            ├── attaching    mount(2) and umount2(2), or fusermount3 where they are not allowed
            │     └── mounttable   /proc/self/mountinfo
            ├── waiter       waiting for the next request without the way through trio
            └── _pyfuse3     the only module that touches private names of pyfuse3

`docs/mount.md` tells how they work together, and the traps. Submodules are imported by name; this
package imports none of them, so that a command that mounts nothing does not load pyfuse3.
"""
