/* Network namespaces: sockets and sysctls of one, and the launcher's own for rootless networks. */
#ifndef PC_HELPER_NETNS_H
#define PC_HELPER_NETNS_H

#include "network.h"
#include "wire.h"

/* Enter a new network namespace, in which the bridges of an unprivileged user are made.  0, or -1 and *failure. */
int pc_enter_rootless_netns (struct pc_record *failure);
/* Set the loopback interface up.  0 or a negative errno. */
int pc_raise_loopback (void);
/* Set sysctls and open sockets in a network namespace (include/network.h).  0, or -1 and the reply. */
int pc_network (int socket, const struct pc_network_request *request, usize received, const struct pc_fds *fds,
                struct pc_record *reply);

#endif
