/* The file server of a running container. */
#ifndef PC_HELPER_FILES_H
#define PC_HELPER_FILES_H

#include "wire.h"

/* Serve the files of one container until the socket closes (include/files.h). */
_Noreturn void pc_serve_files (int socket, const struct pc_request *request, const struct pc_fds *fds);

#endif
