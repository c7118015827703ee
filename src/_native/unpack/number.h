/* Numbers of tar headers. */
#ifndef PC_NUMBER_H
#define PC_NUMBER_H

#include "raw.h"

/* A field of a header: octal digits between blanks and NULs, or GNU's big-endian binary; 0 or -1. */
int pc_parse_field (const u8 *field, usize size, u64 *out);
/* The same where what is negative can be meant: a time before 1970. */
int pc_parse_signed_field (const u8 *field, usize size, i64 *out);
int pc_parse_decimal (const char *text, usize size, u64 *out);
/* "-12.3456": seconds and nanoseconds, the latter never negative; further digits are cut off. */
int pc_parse_time (const char *text, usize size, i64 *seconds, u32 *nanoseconds);

#endif
