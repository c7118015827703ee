/* Interface between the launcher's main loop and its requests. */
#ifndef PC_SERVE_H
#define PC_SERVE_H

#include "helper/launcher.h"

/* Receive one request and carry it out.  0, or -1 when the caller has closed the socket. */
int pc_serve (struct pc_launcher *launcher);
/* Send a reply, with a pidfd or -1.  Exits when the reply cannot be sent: the caller waits for it, and the end of
   the stream is the only other answer. */
void pc_answer (struct pc_launcher *launcher, struct pc_record *reply, int pidfd);

#endif
