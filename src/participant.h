/*
 * participant.h
 *		Asking participants from a session, outside any saga: at define, and
 *		for check_participant and prepare_participant.
 *
 * These wait, in the calling backend, within the server's connect and
 * statement time-outs and open to cancel.  Never called by a worker.
 */
#ifndef SAGA_PARTICIPANT_H
#define SAGA_PARTICIPANT_H

#include "postgres.h"

#include "machine.h"
#include "server.h"

/* One statement to be parsed there, and what came back. */
typedef struct SagaParseRequest
{
	const char *sql;			/* with $1, $2, ... */
	int			ntypes;
	const Oid  *types;			/* InvalidOid: infer */
	bool		ok;
	char		sqlstate[6];
	char	   *message;		/* if not ok; palloc'd */
	char	   *hint;			/* or NULL */
} SagaParseRequest;

/*
 * Have a participant parse statements, without running any, over one
 * connection.  Returns NULL, all of them answered, or why it could not be
 * reached (palloc'd, no secret in it).
 */
extern char *saga_participant_parse(const SagaServer *server,
									SagaParseRequest *requests, int n);

/* False: it is known to allow no prepared transactions. */
extern bool saga_participant_prepares(const SagaServer *server);

/* ---- participant_http.c ---- */

/* What came of a harmless request to an HTTP service; texts may be NULL. */
typedef struct SagaHttpReach
{
	int			status;			/* 0: there was no answer */
	SagaTime	latency;
	char	   *message;		/* of anything but a success */
	char	   *detail;
	char	   *hint;
} SagaHttpReach;

extern void saga_http_reach(const SagaServer *server, SagaHttpReach *reach);

#endif							/* SAGA_PARTICIPANT_H */
