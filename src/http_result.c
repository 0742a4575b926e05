/*
 * http_result.c
 *		The result of an HTTP step (see http_result.h).
 *
 * Made by the coordinator when an answer comes; read by template.c wherever
 * names are bound.  No I/O, no tables.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/numeric.h"

#include "compat.h"
#include "http_result.h"

#define STATUS	"http_status"
#define BODY	"http_body"

static void
push_key(JsonbParseState **state, const char *name)
{
	JsonbValue	key;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &key);
}

/* All members of an object. */
static void
push_members(JsonbParseState **state, Jsonb *object)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbValue	v;

	(void) JsonbIteratorNext(&it, &v, true);
	while (JsonbIteratorNext(&it, &v, true) == WJB_KEY)
	{
		pushJsonbValue(state, WJB_KEY, &v);
		(void) JsonbIteratorNext(&it, &v, true);
		pushJsonbValue(state, WJB_VALUE, &v);
	}
}

static void
push_whole(JsonbParseState **state, Jsonb *value)
{
	JsonbValue	v;

	if (value == NULL)
		v.type = jbvNull;
	else if (!JB_ROOT_IS_SCALAR(value))
	{
		v.type = jbvBinary;
		v.val.binary.data = &value->root;
		v.val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	else
		(void) JsonbExtractScalar(&value->root, &v);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static Jsonb *
with_status(Jsonb *body, int status)
{
	JsonbParseState *state = NULL;
	JsonbValue	number;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (body != NULL && JB_ROOT_IS_OBJECT(body))
		push_members(&state, body);
	else
	{
		push_key(&state, BODY);
		push_whole(&state, body);
	}
	/* of two members of the same name the last one counts */
	push_key(&state, STATUS);
	number.type = jbvNumeric;
	number.val.numeric = int64_to_numeric(status);
	pushJsonbValue(&state, WJB_VALUE, &number);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* Text that is no JSON, as a JSON string. */
static Jsonb *
text_result(const SagaCall *call, const char *text, char **problem)
{
	StringInfoData quoted;

	initStringInfo(&quoted);
	escape_json(&quoted, text);
	return saga_result_from_text(call, quoted.data, problem);
}

Jsonb *
saga_http_result(const SagaCall *call, const SagaAnswer *answer,
				 char **problem)
{
	const char *text = answer->result;
	Jsonb	   *body = NULL;
	bool		structured;

	*problem = NULL;
	if (call->shape == SAGA_RESULT_NONE)
		return NULL;
	if (text != NULL)
	{
		/* "42" and "true" in a text are text */
		structured = text[strspn(text, " \t\r\n")] == '{' ||
			text[strspn(text, " \t\r\n")] == '[';
		if (!answer->text_result || structured)
			body = saga_result_from_text(call, text, problem);
		if (answer->text_result && (*problem != NULL || !structured))
			body = text_result(call, text, problem);
	}
	return with_status(*problem == NULL ? body : NULL, answer->http_status);
}

void
saga_http_result_body(int npath, char **path, JsonbValue *root)
{
	JsonbContainer *object = root->val.binary.data;
	JsonbValue *body;

	if (!JsonContainerIsObject(object) ||
		(npath > 0 && (strcmp(path[0], STATUS) == 0 || strcmp(path[0], BODY) == 0)))
		return;
	body = getKeyJsonValueFromContainer(object, BODY, strlen(BODY), NULL);
	if (body != NULL)
		*root = *body;
}
