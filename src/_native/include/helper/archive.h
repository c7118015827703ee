/* Unpacking and packing of layers and trees, each in a confined process (include/layer.h). */
#ifndef PC_HELPER_ARCHIVE_H
#define PC_HELPER_ARCHIVE_H

#include "layer.h"

_Noreturn void pc_pack (int socket, const struct pc_pack_request *request, int top, int stream);
_Noreturn void pc_unpack (int socket, const struct pc_unpack_request *request, int top, int stream);

#endif
