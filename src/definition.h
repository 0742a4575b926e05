/*
 * definition.h
 *		One version of a definition, compiled from its stored JSON.
 */
#ifndef SAGA_DEFINITION_H
#define SAGA_DEFINITION_H

#include "postgres.h"

#include "utils/jsonb.h"

#include "graph.h"
#include "template.h"

typedef enum SagaResultShape
{
	SAGA_RESULT_ONE,			/* default: more than one row is SGR01 */
	SAGA_RESULT_ROWS,			/* array of rows */
	SAGA_RESULT_FIRST,
	SAGA_RESULT_NONE,
} SagaResultShape;

typedef enum SagaCallKind
{
	SAGA_CALL_SQL,
	SAGA_CALL_HTTP,				/* server is one of saga_http */
	SAGA_CALL_CHILD,			/* as action: a saga of 'child' is started, as
								 * compensation: it is undone */
	SAGA_CALL_QUEUE,			/* nobody is called: offered to saga.take() */
	SAGA_CALL_ASKED,			/* what is called says the result of another
								 * step (procedure_call.c); tmpl is NULL */
} SagaCallKind;

typedef enum SagaProtocol
{
	SAGA_PROTOCOL_SAGA,
	SAGA_PROTOCOL_TWO_PHASE,
} SagaProtocol;

/* What a call is to two-phase commit; made by two_phase.c alone. */
typedef enum SagaBranchRole
{
	SAGA_BRANCH_NONE,			/* an ordinary call */
	SAGA_BRANCH_PREPARE,		/* all steps of one server, then PREPARE */
	SAGA_BRANCH_ROLLBACK,		/* undo of it: ROLLBACK PREPARED */
	SAGA_BRANCH_COMMIT,			/* COMMIT PREPARED */
	SAGA_BRANCH_DECIDE,			/* all local steps; its commit is the decision */
} SagaBranchRole;

/* One call: an action, a compensation, a hook or an expression. */
typedef struct SagaCall
{
	SagaCallKind kind;
	char	   *server;			/* NULL: local */

	/*
	 * What is sent or run.  Of an expression, and of the action of CHILD (the
	 * child's input) and QUEUE (what taking it returns): a local SELECT of one
	 * row and one jsonb column.  NULL: the compensation of a CHILD.
	 */
	SagaTemplate *tmpl;
	char	   *child;			/* CHILD: name of a definition */
	char	   *queue;			/* QUEUE */
	char	   *by;				/* ASKED: name of the step whose result says */
	Jsonb	   *args;			/* made from an ASKED one: what its names are;
								 * else NULL: the input */
	bool		callback;		/* an accepted answer is legal; the node's
								 * timeout says how long its answer may take */
	const char *part;			/* of an expression: what it is given as */
	bool		plain;			/* expression of names and literals alone: runs
								 * no code of anybody's, so is fit for any
								 * owner */
	struct SagaCall *decline_if;	/* expression over :result, or NULL: true
									 * turns done into declined */
	int			timeout_ms;
	bool		slow;			/* the coordinator's hint: ran longer than a
								 * shared transaction allows */
	SagaResultShape shape;
	int			expect_rows;	/* -1: any */
	Oid			returns;		/* declared type of the result, or InvalidOid */
	int32		returns_typmod;
	SagaType   *returns_type;	/* NULL: none declared */

	/* SQLSTATE patterns (whole code or class) that override the table */
	int			ndecline_on,
				nretry_on,
				nstuck_on;
	char	  **decline_on,
			  **retry_on,
			  **stuck_on;

	/*
	 * Of a definition run by two-phase commit.  Parts run one after the other
	 * in one transaction; tmpl then has no text, and the parameters of all of
	 * them.
	 */
	SagaBranchRole role;
	int			branch;			/* number of the server in this definition */
	const char *branch_label;	/* its name, fit for a name of ours */
	const char *branch_key;		/* step whose key is claimed for the branch */
	int			nparts;
	struct SagaCall **parts;
	const char **part_names;
} SagaCall;

typedef struct SagaInputField
{
	char	   *name;
	Oid			type;
	int32		typmod;
	SagaType   *type_info;
} SagaInputField;

typedef struct SagaDefinition
{
	int64		id;
	char	   *name;
	int32		version;
	Oid			owner;
	char	   *search_path;	/* in force at define */
	SagaGraph  *graph;
	int			nnames;
	int32	   *by_name;		/* node numbers, ordered by name; of for_each
								 * the EACH, not its body of the same name */
	SagaCall  **action;			/* by node; NULL where it has none */
	SagaCall  **compensation;
	SagaCall  **condition;		/* by node: see saga_definition_eval() */
	SagaCall  **control;
	SagaCall   *output;			/* expression over all results, or NULL: what
								 * a completed saga leaves */
	SagaCall   *on_completed;
	SagaCall   *on_compensated;
	SagaCall   *on_stuck;
	bool		typed_input;	/* 'input' was given: exactly these fields */
	int			ninput;
	SagaInputField *input;		/* ordered as jsonb orders keys */
	bool		input_as_owner; /* checking runs code of domains: as owner */
	SagaTime	deadline;		/* after the start, or NEVER */
	SagaTime	retention;		/* of ended sagas; -1: saga.retention */
	SagaTime	key_retention;	/* of their keys; -1: as the saga */
	int			max_running;	/* 0: no limit */
	int			priority;
	SagaProtocol protocol;		/* unless start() chooses another */
	int			protocols;		/* mask of 1 << SagaProtocol: start() may
								 * choose these, 'protocol' included */
	bool		paused;			/* refreshed like the owner */
	struct SagaDefinition *two_phase;	/* the same, run by two-phase commit;
										 * NULL if protocols does not have it */
	bool		is_two_phase;	/* this is such a one */
	MemoryContext context;		/* holds all of it */
} SagaDefinition;

/*
 * By id, from this process's cache; versions are immutable, owner and paused
 * are refreshed by invalidation.  Needs a transaction on a miss.  NULL if
 * there is none, an error (SGD01) if it no longer compiles (a type was
 * dropped, ...).  What is returned is never freed or moved: pointers into it
 * may be kept.
 */
extern SagaDefinition *saga_definition_by_id(int64 id);

/* The newest version of a name (version 0) or a given one; NULL if none. */
extern SagaDefinition *saga_definition_by_name(const char *name, int32 version);

/*
 * The same for whoever is about to insert an instance: drop_definition() then
 * waits for this transaction, and sees the instance.
 */
extern SagaDefinition *saga_definition_for_start(const char *name,
												 int32 version);

/*
 * Lock a version against being dropped, until the transaction ends, if that
 * takes no waiting.
 */
extern bool saga_definition_try_lock(int64 id);

/*
 * Check an input against the definition's fields: 22023 naming the field when
 * one is missing, surplus or wrong.  Returns it normalised (numeric scale).
 */
extern Jsonb *saga_definition_check_input(const SagaDefinition *def,
										  Jsonb *input);

/*
 * The expression that answers SAGA_OP_EVAL for a node; NULL if it has none.
 * The one row's one column is, by SagaEval:
 *
 *	CONDITION, WHILE	true or false (null counts as false here already)
 *	CASES				a number: the case, -1 for none
 *	ITEMS				an array, or anything else: BROKEN (22023)
 *	TIME				seconds since 1970, or null: BROKEN (22004)
 */
extern SagaCall *saga_definition_eval(const SagaDefinition *def, int node,
									  SagaEval eval);

/* Node index by step name, or SAGA_NO_NODE. */
extern int	saga_definition_node(const SagaDefinition *def, const char *step);

/*
 * The kind of answer an SQLSTATE means (API.md 2, "Answers are of five
 * kinds"), after the call's overrides.  call may be NULL.
 */
extern SagaAnswerKind saga_classify_sqlstate(const char *sqlstate,
											 const SagaCall *call);

/*
 * One result, already shaped by saga_participant or the executor: JSON text
 * (NULL = null) in, Jsonb out, declared 'returns' applied.  NULL with *problem
 * set if it does not fit (the answer is then BROKEN).  Raises nothing for bad
 * text; where 'returns' is declared it needs a transaction.
 */
extern Jsonb *saga_result_from_text(const SagaCall *call, const char *json,
									char **problem);

#endif							/* SAGA_DEFINITION_H */
