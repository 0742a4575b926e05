/*
 * define.h
 *		Between the files that make and load definitions: define.c (SQL
 *		functions), define_body.c and define_props.c (nodes -> stored body),
 *		define_check.c (what only the server and the participants know),
 *		define_calls.c (what other definitions say), definition.c (stored body
 *		-> SagaDefinition), definition_cache.c (table, caches), rights.c.
 */
#ifndef SAGA_DEFINE_H
#define SAGA_DEFINE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

#include "definition.h"

/* Names of steps can be written as :name; names of definitions are free. */
#define SAGA_MAX_STEP_NAME			63
#define SAGA_MAX_DEFINITION_NAME	200

#define SAGA_DEFAULT_TIMEOUT		(30 * SAGA_SECOND)
#define SAGA_MAX_TIMEOUT			(86400 * SAGA_SECOND)

/* Longest deadline, retention and wait: keeps sums of times far from overflow. */
#define SAGA_MAX_SECONDS			(100.0 * 366 * 86400)

/* ---- faults: gathered, reported together ---- */

typedef struct SagaFaults
{
	MemoryContext context;		/* of what is in it */
	List	   *items;			/* of SagaFault */
} SagaFaults;

typedef struct SagaFault
{
	char	   *step;			/* or NULL: the definition itself */
	char	   *fault;
	char	   *hint;			/* or NULL */
	char		sqlstate[6];	/* of the error behind it, or "" */
} SagaFault;

/* Add one; an equal one that is there already is not repeated. */
extern SagaFault *saga_fault(SagaFaults *faults, const char *step,
							 const char *hint, const char *fmt,...)
			pg_attribute_printf(4, 5);

/* Raise SGD01 with all of them if there are any. */
extern void saga_faults_raise(const SagaFaults *faults, const char *message);

/* ---- JSON objects ---- */
extern JsonbValue *saga_json_get(JsonbContainer *object, const char *key);
extern char *saga_json_text(JsonbContainer *object, const char *key);
extern bool saga_json_bool(JsonbContainer *object, const char *key);
extern double saga_json_number(JsonbContainer *object, const char *key,
							   double otherwise);
extern JsonbContainer *saga_json_container(JsonbContainer *object,
										   const char *key);

/* ---- define_body.c ---- */

/* The arguments of saga.define(); NULL and negative numbers: not given. */
typedef struct SagaDefineArgs
{
	char	   *name;
	int			nsteps;
	Datum	   *steps;			/* jsonb */
	bool	   *step_nulls;
	char	   *input;
	char	   *output;
	Interval   *deadline;
	Interval   *retention;
	Interval   *key_retention;
	bool		has_max_running;
	int32		max_running;
	bool		has_priority;
	int32		priority;
	char	   *protocol;
	int			nprotocols;
	char	  **protocols;
	char	   *compensation_order;
	char	   *on_completed;
	char	   *on_compensated;
	char	   *on_stuck;
} SagaDefineArgs;

/*
 * The canonical body of a definition (format: see definition.c); what is
 * wrong with the arguments as such is added to the faults.  Types are looked
 * up under the current search_path.
 */
extern Jsonb *saga_body_build(const SagaDefineArgs *args, SagaFaults *faults);

/* Why this cannot be a step's name, or NULL. */
extern const char *saga_step_name_problem(const char *name);

/* ---- definition.c ---- */

/* One row of saga.definition. */
typedef struct SagaDefinitionRow
{
	int64		id;
	char	   *name;
	int32		version;
	Oid			owner;
	bool		paused;
	char	   *hash;
	char	   *search_path;
	Jsonb	   *body;
} SagaDefinitionRow;

/*
 * Compile a row, as a child of the current memory context; faults are added,
 * and if there are new ones the result must not be run.
 */
extern SagaDefinition *saga_definition_compile(const SagaDefinitionRow *row,
											   SagaFaults *faults);

/* The system name a text is, or -1. */
extern int	saga_system_name(const char *name);

/* ---- define_check.c ---- */

/*
 * What only catalogs and participants know: servers, statements, the owner.
 * Statements of unreachable participants are warned of.
 */
extern void saga_definition_check_world(const SagaDefinition *def,
										SagaFaults *faults);

/* ---- define_calls.c ---- */

/*
 * The definitions that are called: do they exist, may the owner start them,
 * do they lead back here?
 */
extern void saga_definition_check_calls(const SagaDefinition *def,
										SagaFaults *faults);

/* Does any action, compensation, hook or expression run in this database? */
extern bool saga_definition_has_local(const SagaDefinition *def);

/* ---- definition_cache.c ---- */

typedef struct SagaGrant
{
	Oid			grantee;
	int			privileges;		/* mask, see rights.c */
} SagaGrant;

/* What is known of a name, over all its versions. */
typedef struct SagaNameEntry
{
	char		name[SAGA_MAX_DEFINITION_NAME + 1];
	int64		id;				/* of the newest version; 0: no such name */
	int32		version;
	Oid			owner;
	int			ngrants;
	SagaGrant  *grants;
} SagaNameEntry;

/*
 * NULL if no version of it exists.  Valid until the next call of anything
 * that may process invalidations.
 */
extern const SagaNameEntry *saga_definition_name(const char *name);

/* The newest version's row, as of now; false if there is none. */
extern bool saga_definition_newest(const char *name, SagaDefinitionRow *row);

/* The id of one version, or 0. */
extern int64 saga_definition_id(const char *name, int32 version);

/* For writers of the two tables, before they return. */
extern void saga_definitions_changed(void);
extern void saga_privileges_changed(void);

/* Serialise makers of versions of one name; and droppers against starters. */
extern void saga_definition_lock_name(const char *name);
extern void saga_definition_lock_for_drop(int64 id);

/* 42704 */
extern void saga_no_such_definition(const char *name) pg_attribute_noreturn();

#endif							/* SAGA_DEFINE_H */
