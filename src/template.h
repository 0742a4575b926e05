/*
 * template.h
 *		Action text with :names: found once at define, bound at each call.
 *		A value is never pasted into SQL.
 *
 * Names are resolved to a place when the definition is compiled
 * (saga_template_parse), and to a value when the call is made
 * (saga_template_bind).
 */
#ifndef SAGA_TEMPLATE_H
#define SAGA_TEMPLATE_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "machine.h"

/* System names of API.md 2; only those that a local or SQL step can use. */
typedef enum SagaSystemName
{
	SAGA_SYS_SAGA_ID,
	SAGA_SYS_SAGA_NAME,
	SAGA_SYS_SAGA_KEY,
	SAGA_SYS_STEP_NAME,
	SAGA_SYS_ATTEMPT,
	SAGA_SYS_IDEMPOTENCY_KEY,	/* of this operation */
	SAGA_SYS_ACTION_KEY,		/* of the action, also in its undo */
	SAGA_SYS_CORRELATION,
	SAGA_SYS_STARTED_BY,
	SAGA_SYS_STARTED_AT,
	SAGA_SYS_DEADLINE,
	SAGA_SYS_RESULT,			/* in an undo and decline_if: the action's own
								 * result */
	SAGA_SYS_CAUSE,
	SAGA_SYS_ITEM,				/* the element a for_each is at; may have a
								 * path */
	SAGA_SYS_ITEM_INDEX,		/* ... its number, from 0 */
	SAGA_SYS_ITERATION,			/* number of the innermost loop's iteration,
								 * from 0; in 'while' those that have begun */
	SAGA_SYS_CALLBACK_TOKEN,
} SagaSystemName;

typedef enum SagaParamScope
{
	SAGA_PARAM_SYSTEM,			/* index: SagaSystemName */
	SAGA_PARAM_INPUT,			/* name: first key of the input */
	SAGA_PARAM_STEP,			/* index: node (not step) whose result it is */
	SAGA_PARAM_STEP_FAILED,		/* :step.failed -> boolean */
} SagaParamScope;

/*
 * How JSON becomes text of a declared type, and whether it may: resolved once
 * for each definition (types.c), read without a catalog afterwards.
 */
typedef enum SagaTypeKind
{
	SAGA_TYPE_SCALAR,			/* whatever has a text form of its own */
	SAGA_TYPE_JSON,				/* json, jsonb: every value, as JSON text */
	SAGA_TYPE_ARRAY,
	SAGA_TYPE_COMPOSITE,
} SagaTypeKind;

typedef struct SagaType
{
	Oid			type;			/* as declared */
	int32		typmod;
	Oid			base;			/* below all domains, with their typmod */
	int32		base_typmod;
	SagaTypeKind kind;			/* of base */
	bool		has_domain;		/* it is, or holds, a domain: checking a value
								 * may run code of the domain's owner */
	FmgrInfo	input;			/* of base */
	Oid			input_param;
	FmgrInfo	domain_input;	/* if type is a domain */
	Oid			domain_param;
	char		delim;			/* ARRAY: between elements */
	struct SagaType *elem;		/* ARRAY */
	int			natts;			/* COMPOSITE: without dropped ones */
	char	  **attnames;
	struct SagaType **atts;
} SagaType;

/* Where in the text it stands: how its value is written there. */
typedef enum SagaParamPlace
{
	SAGA_PLACE_SQL,				/* bound */
	SAGA_PLACE_PATH,			/* percent-encoded */
	SAGA_PLACE_QUERY,
	SAGA_PLACE_JSON,			/* as a JSON value */
	SAGA_PLACE_JSON_STRING,		/* within a JSON string, escaped */
} SagaParamPlace;

typedef struct SagaParam
{
	SagaParamScope scope;
	SagaParamPlace place;
	int			index;
	char	   *name;			/* as written, for messages */
	int			npath;			/* keys and array positions from the input's
								 * or the result's root; 0: all of it */
	char	  **path;
	Oid			type;			/* declared type, or InvalidOid: let the
								 * database that runs it infer one */
	Oid			bind_type;		/* what to announce to that database: type, or
								 * for a participant, which knows none of our
								 * own types, a built-in one or InvalidOid */
	const SagaType *type_info;	/* or NULL */
} SagaParam;

typedef enum SagaTemplateKind
{
	SAGA_TEMPLATE_SQL,
	SAGA_TEMPLATE_HTTP,
} SagaTemplateKind;

typedef struct SagaTemplate
{
	SagaTemplateKind kind;
	int			nparams;		/* one per occurrence */
	SagaParam  *params;

	/* SQL */
	char	   *sql;			/* with $1, $2, ... */
	uint64		hash;			/* of sql and bind types: names prepared
								 * statements */

	/* HTTP: texts between parameters, UTF-8; the body's come last */
	const char *method;
	int			npath;			/* parameters of path and query */
	char	  **path;			/* npath + 1 texts */
	char	  **body;			/* nparams - npath + 1 texts; NULL: no body */
} SagaTemplate;

/* Everything a name can stand for, as known when a call is made. */
typedef struct SagaValues
{
	pg_uuid_t	saga_id;
	const char *saga_name;
	const char *saga_key;		/* or NULL */
	const char *step_name;
	int			attempt;
	SagaOp		op;
	const char *correlation;	/* or NULL */
	const char *started_by;
	TimestampTz started_at;
	TimestampTz deadline;		/* DT_NOEND: none */
	const char *cause;			/* or NULL */
	Jsonb	   *input;			/* object */
	int			node;			/* step, or pseudo-node, that is bound for */
	Jsonb	  **results;		/* by step; NULL = none.  Without a state: by
								 * node */
	Jsonb	   *result;			/* what :result is, where results[node] is not
								 * it (yet): for decline_if; or NULL */
	Jsonb	  **items;			/* by step: the elements of an EACH, or NULL */
	const char *callback_token; /* or NULL */
	const SagaState *state;		/* which runs are meant; NULL only where a
								 * call is shown, not made: then those below */
	Jsonb	   *item;
	int			item_index;
	int			iteration;
} SagaValues;

/* Resolves one dotted name while a template is parsed; definition.c's. */
typedef struct SagaNameScope
{
	/*
	 * Fill *param (scope, index, path, type) for the given parts.  Returns
	 * NULL, or why the name is unknown (palloc'd).
	 */
	char	   *(*resolve) (struct SagaNameScope *self, int nparts,
							char **parts, SagaParam *param);
	void	   *context;
} SagaNameScope;

/*
 * Find the names in SQL text.  Neither form counts inside literals, quoted
 * identifiers, dollar quotes and comments; ':name' only where the character
 * before the colon is none of letter, digit, '_', ':', quote, ')', ']'.
 * On an unknown name returns NULL and sets *problem (palloc'd).
 */
extern SagaTemplate *saga_template_parse(const char *text,
										 SagaNameScope *scope, char **problem);

/* After types of parameters were changed. */
extern void saga_template_rehash(SagaTemplate *tmpl);

/*
 * A name at a colon: its dotted parts, and where it ends; or NULL if none
 * begins there.
 */
extern const char *saga_template_name(const char *text, const char *colon,
									  char ***parts, int *nparts);

/*
 * Values of all parameters as text in the current memory context, NULL for
 * SQL NULL and for a missing path.  Scalars as their text; objects and arrays
 * as JSON text, but arrays as array literals where the declared type is an
 * array.  Of an HTTP template, encoded for their places (template_http.c).
 */
extern void saga_template_bind(const SagaTemplate *tmpl,
							   const SagaValues *values, char **out);

/*
 * A value as text for its declared type (NULL: none is declared); NULL for
 * JSON null.  Does not check: a value that does not fit gets its plain text.
 */
extern char *saga_value_text(const SagaType *type, const JsonbValue *v);

/* ---- template_http.c ---- */

/* Is this text METHOD /path, which no SQL can be? */
extern bool saga_template_looks_http(const char *text);

/* METHOD /path?query {json body}; the rest as saga_template_parse(). */
extern SagaTemplate *saga_http_template_parse(const char *text,
											  SagaNameScope *scope,
											  char **problem);

/* From texts to what may stand in the places of the parameters. */
extern void saga_http_encode(const SagaTemplate *tmpl, char **values);

/*
 * Path and body of bound values, UTF-8, in the current memory context.  NULL
 * with *problem (static) if a value cannot be part of a path; NULL without a
 * problem if there is no body.
 */
extern char *saga_http_path(const SagaTemplate *tmpl, char **values,
							const char **problem);
extern char *saga_http_body(const SagaTemplate *tmpl, char **values);

/* The stable key of one operation of one step (same in every attempt). */
extern char *saga_idempotency_key(const pg_uuid_t *saga_id, const char *step,
								  SagaOp op);

#endif							/* SAGA_TEMPLATE_H */
