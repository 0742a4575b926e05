/*
 * input.c
 *		Inputs and results against a definition; what an SQLSTATE means.
 *
 * Called by start (sessions; the input check is on the path of every saga of
 * start_many) and by coordinators and executors for results.  Owns nothing,
 * reads no table; see types.c for how a value is checked.
 */
#include "postgres.h"

#include "access/transam.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "guc.h"
#include "spi_util.h"
#include "types.h"

/* ---- inputs ---- */

static void
check_size(const char *what, const char *name, Size size)
{
	if (size > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("%s of saga \"%s\" is too large", what, name),
				 errdetail("It has %zu bytes; saga.max_payload is %d.",
						   size, saga_max_payload),
				 errhint("Pass a reference to large data rather than the data.")));
}

static void
bad_input(const SagaDefinition *def, const char *why, const char *field, int len)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("input of saga \"%s\" %s field \"%.*s\"",
					def->name, why, len, field),
			 errhint("saga.definitions shows the fields that version %d declares.",
					 def->version)));
}

/* Errors a value can cause; others go through as they are. */
static bool
is_value_error(int sqlerrcode)
{
	int			class = ERRCODE_TO_CATEGORY(sqlerrcode);

	return class == MAKE_SQLSTATE('2', '2', '0', '0', '0') ||
		class == MAKE_SQLSTATE('2', '3', '0', '0', '0') ||
		class == MAKE_SQLSTATE('5', '4', '0', '0', '0') ||
		sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED ||
		class == MAKE_SQLSTATE('4', '2', '0', '0', '0');
}

/* Replace the error being handled by one that names the field. */
static void
rethrow_for_field(const SagaDefinition *def, const SagaInputField *field,
				  MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (!is_value_error(error->sqlerrcode))
		PG_RE_THROW();
	FlushErrorState();
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("input of saga \"%s\" has a wrong value in field \"%s\"",
					def->name, field->name),
			 errdetail_internal("%s", error->message),
			 errhint("The field is declared as %s.",
					 format_type_with_typemod(field->type, field->typmod))));
}

/*
 * Take the input apart; 22023 for a field missing or surplus.  Keys of a
 * jsonb object and def->input are in the same order, so one pass will do.
 */
static void
split_fields(const SagaDefinition *def, Jsonb *input, JsonbValue *values)
{
	JsonbIterator *it = JsonbIteratorInit(&input->root);
	JsonbValue	key;
	JsonbValue	unused;
	int			n = 0;

	(void) JsonbIteratorNext(&it, &unused, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		int			order = -1;

		if (n < def->ninput)
		{
			int			len = strlen(def->input[n].name);

			order = key.val.string.len != len ? key.val.string.len - len
				: memcmp(key.val.string.val, def->input[n].name, len);
		}
		if (order < 0)
			bad_input(def, "has unknown", key.val.string.val, key.val.string.len);
		if (order > 0)
			break;
		(void) JsonbIteratorNext(&it, &values[n++], true);
	}
	if (n < def->ninput)
		bad_input(def, "lacks", def->input[n].name, strlen(def->input[n].name));
}

/* Check each value, and normalise it in place; true if any has changed. */
static bool
check_values(const SagaDefinition *def, JsonbValue *values)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool changed = false;
	volatile int n = 0;

	PG_TRY();
	{
		for (; n < def->ninput; n++)
		{
			JsonbValue	fitted;

			if (saga_value_check(def->input[n].type_info, &values[n], &fitted))
			{
				values[n] = fitted;
				changed = true;
			}
		}
	}
	PG_CATCH();
	{
		rethrow_for_field(def, &def->input[n], context);
	}
	PG_END_TRY();
	return changed;
}

/* The same input, or a normalised copy. */
static Jsonb *
check_fields(const SagaDefinition *def, Jsonb *input)
{
	JsonbValue *values = palloc(Max(1, def->ninput) * sizeof(JsonbValue));
	JsonbParseState *ps = NULL;

	split_fields(def, input, values);
	if (!check_values(def, values))
		return input;

	pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < def->ninput; i++)
	{
		JsonbValue	key;

		key.type = jbvString;
		key.val.string.val = def->input[i].name;
		key.val.string.len = strlen(def->input[i].name);
		pushJsonbValue(&ps, WJB_KEY, &key);
		pushJsonbValue(&ps, WJB_VALUE, &values[i]);
	}
	return JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_OBJECT, NULL));
}

Jsonb *
saga_definition_check_input(const SagaDefinition *def, Jsonb *input)
{
	SagaUserSwitch save;

	if (input == NULL)
	{
		JsonbParseState *ps = NULL;

		pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
		input = JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_OBJECT, NULL));
	}
	if (!JB_ROOT_IS_OBJECT(input))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("input of saga \"%s\" is not a JSON object", def->name),
				 errhint("Pass an object with one key for each field.")));
	check_size("input", def->name, VARSIZE(input));
	if (!def->typed_input)
		return input;

	if (!def->input_as_owner)
		return check_fields(def, input);
	saga_run_as_begin(def->owner, def->search_path, &save);
	input = check_fields(def, input);
	saga_run_as_end(&save);
	return input;
}

/* ---- results ---- */

typedef struct ResultParse
{
	const SagaCall *call;
	const char *json;
	Jsonb	   *result;
} ResultParse;

static void
parse_result(void *arg)
{
	ResultParse *p = arg;

	p->result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												   CStringGetDatum(p->json)));
}

/* Each row for result => 'rows', else the value itself. */
static void
check_result(void *arg)
{
	ResultParse *p = arg;
	SagaType   *type = p->call->returns_type;
	JsonbParseState *ps = NULL;
	JsonbValue	v;
	JsonbValue	fitted;

	if (!JsonbExtractScalar(&p->result->root, &v))
	{
		v.type = jbvBinary;
		v.val.binary.data = &p->result->root;
		v.val.binary.len = VARSIZE(p->result) - VARHDRSZ;
	}
	if (p->call->shape == SAGA_RESULT_NONE)
		return;
	if (p->call->shape != SAGA_RESULT_ROWS)
	{
		if (saga_value_check(type, &v, &fitted))
			p->result = JsonbValueToJsonb(&fitted);
		return;
	}

	if (v.type != jbvBinary || !JB_ROOT_IS_ARRAY(p->result))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no array of rows")));
	pushJsonbValue(&ps, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < (int) JB_ROOT_COUNT(p->result); i++)
	{
		JsonbValue *row = getIthJsonbValueFromContainer(&p->result->root, i);

		pushJsonbValue(&ps, WJB_ELEM,
					   saga_value_check(type, row, &fitted) ? &fitted : row);
	}
	p->result = JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_ARRAY, NULL));
}

/* Do its input functions compute only, holding nothing when they fail? */
static bool
is_pure(const SagaType *type)
{
	if (type->kind == SAGA_TYPE_ARRAY)
		return is_pure(type->elem);
	return type->kind != SAGA_TYPE_COMPOSITE && type->type < FirstGenbkiObjectId;
}

/* What fn(arg) raised about a value, or NULL; leaves no trace of it. */
static char *
catch_value_error(void (*fn) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile message = NULL;

	PG_TRY();
	{
		fn(arg);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (!is_value_error(error->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		message = error->message;
	}
	PG_END_TRY();
	return message;
}

Jsonb *
saga_result_from_text(const SagaCall *call, const char *json, char **problem)
{
	ResultParse p = {.call = call,.json = json ? json : "null"};

	*problem = NULL;
	if (strlen(p.json) > (size_t) saga_max_payload)
	{
		*problem = psprintf("result has %zu bytes, saga.max_payload is %d",
							strlen(p.json), saga_max_payload);
		return NULL;
	}
	*problem = catch_value_error(parse_result, &p);
	if (*problem != NULL)
	{
		*problem = psprintf("result cannot be read as JSON: %s", *problem);
		return NULL;
	}
	if (call == NULL || call->returns_type == NULL)
		return p.result;

	if (is_pure(call->returns_type))
		*problem = catch_value_error(check_result, &p);
	else
	{
		ErrorData  *error = saga_try(check_result, &p);

		if (error != NULL)
			*problem = error->message;
	}
	if (*problem == NULL)
		return p.result;
	*problem = psprintf("result is not of type %s: %s",
						format_type_with_typemod(call->returns,
												 call->returns_typmod),
						*problem);
	return NULL;
}

/* ---- SQLSTATEs ---- */

static const struct
{
	const char *pattern;		/* whole code, or class */
	SagaAnswerKind kind;
}			sqlstate_kinds[] =
{
	{"SGB01", SAGA_ANSWER_DECLINED},
	{"P0001", SAGA_ANSWER_DECLINED},
	{"22", SAGA_ANSWER_DECLINED},
	{"23", SAGA_ANSWER_DECLINED},
	{"SGB02", SAGA_ANSWER_TRANSIENT},
	{"55P03", SAGA_ANSWER_TRANSIENT},
	{"08", SAGA_ANSWER_TRANSIENT},
	{"40", SAGA_ANSWER_TRANSIENT},
	{"53", SAGA_ANSWER_TRANSIENT},
	{"57", SAGA_ANSWER_TRANSIENT},
	{"58", SAGA_ANSWER_TRANSIENT},

	/* status codes of HTTP, as H0404 */
	{"H0400", SAGA_ANSWER_DECLINED},
	{"H0402", SAGA_ANSWER_DECLINED},
	{"H0409", SAGA_ANSWER_DECLINED},
	{"H0410", SAGA_ANSWER_DECLINED},
	{"H0412", SAGA_ANSWER_DECLINED},
	{"H0422", SAGA_ANSWER_DECLINED},
	{"H0408", SAGA_ANSWER_TRANSIENT},
	{"H0425", SAGA_ANSWER_TRANSIENT},
	{"H0429", SAGA_ANSWER_TRANSIENT},
	{"H05", SAGA_ANSWER_TRANSIENT},
};

/* Length of the pattern if it covers the code, else 0. */
static int
match(const char *pattern, const char *sqlstate)
{
	int			len = strlen(pattern);

	return strncmp(pattern, sqlstate, len) == 0 ? len : 0;
}

static void
match_all(char **patterns, int n, SagaAnswerKind kind, const char *sqlstate,
		  int *longest, SagaAnswerKind *found)
{
	for (int i = 0; i < n; i++)
	{
		int			len = match(patterns[i], sqlstate);

		if (len > *longest)
		{
			*longest = len;
			*found = kind;
		}
	}
}

/* A whole code wins over its class; define refuses the same pattern twice. */
SagaAnswerKind
saga_classify_sqlstate(const char *sqlstate, const SagaCall *call)
{
	SagaAnswerKind kind = SAGA_ANSWER_BROKEN;
	int			longest = 0;

	if (call != NULL)
	{
		match_all(call->decline_on, call->ndecline_on, SAGA_ANSWER_DECLINED,
				  sqlstate, &longest, &kind);
		match_all(call->retry_on, call->nretry_on, SAGA_ANSWER_TRANSIENT,
				  sqlstate, &longest, &kind);
		match_all(call->stuck_on, call->nstuck_on, SAGA_ANSWER_BROKEN,
				  sqlstate, &longest, &kind);
		if (longest > 0)
			return kind;
	}
	for (int i = 0; i < (int) lengthof(sqlstate_kinds); i++)
		if (match(sqlstate_kinds[i].pattern, sqlstate) > 0)
			return sqlstate_kinds[i].kind;
	return SAGA_ANSWER_BROKEN;
}
