/* Names of errors and signals as the wire spells them. */
#ifndef INSULA_NAMES_H
#define INSULA_NAMES_H

const char *error_name(int error);         /* "ENOENT"; "EIO" for one nobody named */
const char *signal_name(int number);       /* "INT"; NULL for one without a name */
int signal_number(const char *name);       /* 0 when there is no such signal */

#endif
