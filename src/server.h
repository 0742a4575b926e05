/*
 * server.h
 *		Participants as SQL/MED has them: foreign server + user mapping ->
 *		what a connector needs to connect.
 *
 * Syscache readers only: needs a transaction, opens no socket, and never puts
 * a value of a user mapping into a message.
 */
#ifndef SAGA_SERVER_H
#define SAGA_SERVER_H

#include "postgres.h"

typedef enum SagaServerKind
{
	SAGA_SERVER_POSTGRES,		/* saga_postgres, postgres_fdw, dblink_fdw */
} SagaServerKind;

typedef struct SagaServer
{
	Oid			serverid;
	Oid			userid;			/* whose mapping: the definition's owner */
	char	   *name;
	SagaServerKind kind;
	int			npairs;			/* libpq keywords and values, password last */
	const char **keywords;
	const char **values;
	bool		password_required;	/* owner is no superuser: the password
									 * must be given and really be used */
	int			pool_size;
	int			statement_timeout_ms;	/* 0: the step's own */
	int			connect_timeout_ms;
	char	   *search_path;	/* or NULL: the role's */
	bool		prepared;		/* false: pooler in transaction mode between */
	uint64		fingerprint;	/* of everything above: a change means new
								 * connections */
} SagaServer;

/*
 * Look one up in the current memory context.  On a fault the user has to mend
 * (no such server, no USAGE, no mapping, no password) returns NULL with
 * *problem and *sqlstate set when problem is not NULL, else raises it.
 */
extern SagaServer *saga_server_lookup(const char *name, Oid owner,
									  char **problem, int *sqlstate);

/* statement_timeout of a session whose server has none of its own. */
#define SAGA_STATEMENT_TIMEOUT	30000	/* ms */

/* Bumped by the syscache callbacks on servers, mappings and roles. */
extern uint64 saga_server_generation(void);
extern void saga_server_init(void);

#endif							/* SAGA_SERVER_H */
