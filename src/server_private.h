/*
 * server_private.h
 *		Between server.c and server_http.c only: lists of options, and values
 *		that several wrappers have.
 */
#ifndef SAGA_SERVER_PRIVATE_H
#define SAGA_SERVER_PRIVATE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "server.h"

#define SAGA_CONNECT_TIMEOUT	10000	/* ms */

typedef enum SagaOptionType
{
	OPTION_TEXT,
	OPTION_BOOL,				/* ours: as PostgreSQL writes booleans */
	OPTION_FLAG,				/* libpq's: 0 or 1 */
	OPTION_INT,
	OPTION_PORT,
	OPTION_INTERVAL,			/* '5s'; a bare number has the unit's default */
	OPTION_SSLMODE,
	OPTION_SESSION_ATTRS,
	OPTION_URL,
	OPTION_SIZE,				/* '256kB'; a bare number is bytes */
	OPTION_RATE,
	OPTION_HEADER,				/* what may stand in a header's line */
	OPTION_USER,				/* the same, without a colon */
} SagaOptionType;

typedef struct SagaOptionSpec
{
	const char *name;
	Oid			catalog;		/* where it may be set */
	SagaOptionType type;
	bool		superuser;		/* reads a file of the server's, or the like */
	bool		libpq;			/* handed over; else ours */
} SagaOptionSpec;

/* ---- server.c ---- */
extern const SagaOptionSpec *saga_find_option(const SagaOptionSpec *specs,
											  const char *name);
extern void saga_unknown_option(const SagaOptionSpec *specs, const char *name,
								Oid catalog) pg_attribute_noreturn();

/* Raise what is wrong with an option; 'needed': what its value should be. */
extern void saga_require_option(const SagaOptionSpec *spec, Oid catalog,
								const char *value, const char *needed);

/* Milliseconds; digits alone count 'bare' ms each.  False if it is no time. */
extern bool saga_option_ms(const char *value, int bare, int *result);
extern bool saga_option_int(const char *value, int min, int max, int *result);
extern void saga_server_add(SagaServer *server, int maxpairs,
							const char *keyword, const char *value);

/* ---- server_http.c ---- */

/* Take the options; false if there is no url. */
extern bool saga_server_take_http(SagaServer *server, int maxpairs,
								  List *options, List *mapping);

#endif							/* SAGA_SERVER_PRIVATE_H */
