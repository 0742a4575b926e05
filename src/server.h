/*
 * server.h
 *		Participants as SQL/MED has them: foreign server + user mapping ->
 *		what a connector needs to call it.
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
	SAGA_SERVER_HTTP,			/* saga_http */
} SagaServerKind;

typedef struct SagaServer
{
	Oid			serverid;
	Oid			userid;			/* whose mapping: the definition's owner */
	char	   *name;
	SagaServerKind kind;

	/*
	 * PostgreSQL: libpq keywords and values, the password last.  HTTP: "base"
	 * (the URL that paths are appended to), "host" and "port" in it, and as
	 * given sslrootcert, bearer, user, password, header_<name>.
	 */
	int			npairs;
	const char **keywords;
	const char **values;
	bool		password_required;	/* owner is no superuser: the password
									 * must be given and really be used */
	int			pool_size;
	int			statement_timeout_ms;	/* 0: the step's own */
	int			connect_timeout_ms;
	char	   *search_path;	/* or NULL: the role's */
	bool		prepared;		/* false: pooler in transaction mode between */
	int			request_timeout_ms; /* 0: the step's own */
	int			max_response;	/* HTTP: bytes; 0: saga.max_payload */
	double		rate;			/* calls a second; 0: no limit */
	bool		allow_private;	/* HTTP: any address may be called */
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

/* The value of a keyword above, or NULL. */
extern const char *saga_server_value(const SagaServer *server,
									 const char *keyword);

/* The kind of an existing server that sagas can call; false if it is none. */
extern bool saga_server_kind(const char *name, SagaServerKind *kind);

/* statement_timeout of a session whose server has none of its own. */
#define SAGA_STATEMENT_TIMEOUT	30000	/* ms */

/* Bumped by the syscache callbacks on servers, mappings and roles. */
extern uint64 saga_server_generation(void);
extern void saga_server_init(void);

#endif							/* SAGA_SERVER_H */
