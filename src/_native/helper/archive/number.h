/* Parser of the numbers in tar headers. */
#ifndef PC_NUMBER_H
#define PC_NUMBER_H

#include "raw.h"

/* Parse a header field: octal digits between blanks and NULs, or GNU's big-endian binary. Return 0 or -1. */
int pc_parse_field (const u8 *field, usize size, u64 *out);
/* Parse a field that may be negative, such as a time before 1970. */
int pc_parse_signed_field (const u8 *field, usize size, i64 *out);
int pc_parse_decimal (const char *text, usize size, u64 *out);
/* Parse "-12.3456" into seconds and nanoseconds >= 0; further digits are truncated. */
int pc_parse_time (const char *text, usize size, i64 *seconds, u32 *nanoseconds);

#endif
