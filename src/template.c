/*
 * template.c
 *		Action text with :names (see template.h).
 *
 * Two halves that share no state: the scanner, which turns text into SQL with
 * $1, $2, ... when a definition is compiled, and the binder, which turns
 * JSON values into parameter texts when a call is made.  Neither reads a
 * catalog; the binder never raises an error for a value it is given.
 *
 * The scanner follows the server's lexer (scan.l) in what is a literal, a
 * quoted identifier, a dollar quote and a comment, with
 * standard_conforming_strings on, as all our sessions have it.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/numeric.h"

#include "compat.h"
#include "http_result.h"
#include "template.h"

/* The protocol's limit is 65535; nobody gets near this. */
#define MAX_PARAMS	32767

#define IS_HIGH(c)			(((unsigned char) (c)) >= 0x80)
#define IS_NAME_START(c) \
	(isalpha((unsigned char) (c)) || (c) == '_' || IS_HIGH(c))
#define IS_NAME_CHAR(c) \
	(isalnum((unsigned char) (c)) || (c) == '_' || IS_HIGH(c))

typedef struct Scanner
{
	const char *text;
	const char *p;				/* next character */
	StringInfoData sql;
	SagaNameScope *scope;
	SagaParam  *params;
	int			nparams;
	int			maxparams;
	char	   *problem;
} Scanner;

/* ---- the scanner ---- */

static void
copy_to(Scanner *s, const char *end)
{
	appendBinaryStringInfo(&s->sql, s->p, end - s->p);
	s->p = end;
}

/* End of white space and comments that hold a newline, or NULL. */
static const char *
skip_continuation(const char *p)
{
	bool		newline = false;

	for (;;)
	{
		if (*p == '\n' || *p == '\r')
			newline = true;
		else if (p[0] == '-' && p[1] == '-')
		{
			while (p[1] != '\0' && p[1] != '\n' && p[1] != '\r')
				p++;
		}
		else if (*p != ' ' && *p != '\t' && *p != '\f' && *p != '\v')
			break;
		p++;
	}
	return newline ? p : NULL;
}

/* A literal or quoted identifier from its opening quote on. */
static void
copy_quoted(Scanner *s, char quote, bool escapes)
{
	const char *p = s->p + 1;

	for (;;)
	{
		if (*p == '\0')
			break;				/* unterminated: the SQL parser will say so */
		if (escapes && *p == '\\' && p[1] != '\0')
		{
			p += 2;
			continue;
		}
		if (*p++ != quote)
			continue;
		if (*p == quote)
		{
			p++;
			continue;
		}
		/* 'a' newline 'b' is one literal, and keeps its kind */
		if (escapes)
		{
			const char *next = skip_continuation(p);

			if (next != NULL && *next == quote)
			{
				p = next + 1;
				continue;
			}
		}
		break;
	}
	copy_to(s, p);
}

static void
copy_block_comment(Scanner *s)
{
	const char *p = s->p + 2;
	int			depth = 1;

	while (*p != '\0' && depth > 0)
	{
		if (p[0] == '/' && p[1] == '*')
		{
			depth++;
			p += 2;
		}
		else if (p[0] == '*' && p[1] == '/')
		{
			depth--;
			p += 2;
		}
		else
			p++;
	}
	copy_to(s, p);
}

/* $$...$$ or $tag$...$tag$; false if the dollar begins no such thing. */
static bool
copy_dollar_quoted(Scanner *s)
{
	const char *p = s->p + 1;
	const char *end;
	char	   *tag;

	if (IS_NAME_START(*p))
	{
		while (IS_NAME_CHAR(*p))
			p++;
	}
	if (*p != '$')
		return false;
	p++;
	tag = pnstrdup(s->p, p - s->p);
	end = strstr(p, tag);
	copy_to(s, end ? end + strlen(tag) : p + strlen(p));
	pfree(tag);
	return true;
}

static void
copy_word(Scanner *s)
{
	const char *p = s->p;
	bool		escapes;

	while (IS_NAME_CHAR(*p) || *p == '$')
		p++;
	escapes = (p - s->p == 1 && (*s->p == 'e' || *s->p == 'E') && *p == '\'');
	copy_to(s, p);
	if (escapes)
		copy_quoted(s, '\'', true);
}

/* The dotted parts of a name; returns its end, or NULL if this is none. */
static const char *
split_name(const char *p, bool braced, char ***parts, int *nparts)
{
	int			max = 4;

	*parts = palloc(max * sizeof(char *));
	*nparts = 0;
	for (;;)
	{
		const char *start = p;

		if (braced)
		{
			while (*p != '\0' && strchr(".}{'\"\n\r", *p) == NULL)
				p++;
			if (p == start)
				return NULL;
		}
		else if (*nparts == 0 ? IS_NAME_START(*p) : IS_NAME_CHAR(*p))
		{
			while (IS_NAME_CHAR(*p))
				p++;
		}
		else
			return NULL;
		if (*nparts == max)
		{
			max *= 2;
			*parts = repalloc(*parts, max * sizeof(char *));
		}
		(*parts)[(*nparts)++] = pnstrdup(start, p - start);

		if (*p != '.' || (!braced && !IS_NAME_CHAR(p[1])))
			break;
		p++;
	}
	if (braced)
		return *p == '}' ? p + 1 : NULL;
	return p;
}

static void
add_param(Scanner *s, const char *written, int len, char **parts, int nparts)
{
	SagaParam  *param;

	if (s->nparams == MAX_PARAMS)
	{
		s->problem = psprintf("more than %d parameters", MAX_PARAMS);
		return;
	}
	if (s->nparams == s->maxparams)
	{
		s->maxparams *= 2;
		s->params = repalloc(s->params, s->maxparams * sizeof(SagaParam));
	}
	param = &s->params[s->nparams];
	memset(param, 0, sizeof(SagaParam));
	param->name = pnstrdup(written, len);
	s->problem = s->scope->resolve(s->scope, nparts, parts, param);
	if (s->problem != NULL)
		return;
	s->nparams++;

	/* the parameter must not run into its neighbours, as in x:{a}5 */
	if (s->sql.len > 0 &&
		(IS_NAME_CHAR(s->sql.data[s->sql.len - 1]) ||
		 s->sql.data[s->sql.len - 1] == '$'))
		appendStringInfoChar(&s->sql, ' ');
	appendStringInfo(&s->sql, "$%d", s->nparams);
	if (IS_NAME_CHAR(*s->p) || *s->p == '$')
		appendStringInfoChar(&s->sql, ' ');
}

const char *
saga_template_name(const char *text, const char *colon, char ***parts,
				   int *nparts)
{
	char		before = colon > text ? colon[-1] : ' ';

	if (colon[1] == '{')
		return split_name(colon + 2, true, parts, nparts);
	if (!IS_NAME_CHAR(before) && strchr(":'\")]", before) == NULL &&
		IS_NAME_START(colon[1]))
		return split_name(colon + 1, false, parts, nparts);
	return NULL;
}

/* At a colon that may begin a name. */
static void
scan_colon(Scanner *s)
{
	const char *start = s->p;
	const char *end;
	char	  **parts;
	int			nparts;

	if (start[1] == ':' && start[2] != '{')
	{
		copy_to(s, start + 2);
		return;
	}
	end = saga_template_name(s->text, start, &parts, &nparts);
	if (end == NULL)
	{
		copy_to(s, start + 1);
		return;
	}
	s->p = end;
	add_param(s, start, end - start, parts, nparts);
}

static uint64
template_hash(const char *sql, const SagaParam *params, int nparams)
{
	uint64		hash;

	hash = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	for (int i = 0; i < nparams; i++)
		hash = hash_combine64(hash,
							  hash_bytes_uint32_extended(params[i].bind_type, i));
	return hash;
}

SagaTemplate *
saga_template_parse(const char *text, SagaNameScope *scope, char **problem)
{
	SagaTemplate *result;
	Scanner		s;

	memset(&s, 0, sizeof(s));
	s.text = s.p = text;
	s.scope = scope;
	s.maxparams = 8;
	s.params = palloc(s.maxparams * sizeof(SagaParam));
	initStringInfo(&s.sql);
	*problem = NULL;

	while (*s.p != '\0' && s.problem == NULL)
	{
		char		c = *s.p;

		if (c == '\'' || c == '"')
			copy_quoted(&s, c, false);
		else if (c == '-' && s.p[1] == '-')
			copy_to(&s, s.p + strcspn(s.p, "\n\r"));
		else if (c == '/' && s.p[1] == '*')
			copy_block_comment(&s);
		else if (c == '$' && isdigit((unsigned char) s.p[1]))
			s.problem = psprintf("positional parameter %.*s cannot be used",
								 (int) (1 + strspn(s.p + 1, "0123456789")), s.p);
		else if (c == '$' && copy_dollar_quoted(&s))
			continue;
		else if (IS_NAME_START(c))
			copy_word(&s);
		else if (c == ':')
			scan_colon(&s);
		else
			copy_to(&s, s.p + 1);
	}
	if (s.problem != NULL)
	{
		*problem = s.problem;
		return NULL;
	}

	result = palloc0(sizeof(SagaTemplate));
	result->sql = s.sql.data;
	result->nparams = s.nparams;
	result->params = s.params;
	result->hash = template_hash(s.sql.data, s.params, s.nparams);
	return result;
}

void
saga_template_rehash(SagaTemplate *tmpl)
{
	tmpl->hash = template_hash(tmpl->sql, tmpl->params, tmpl->nparams);
}

/* ---- the binder ---- */

static char *
numeric_text(Numeric number)
{
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(number)));
}

static void
append_json(StringInfo out, const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvNull:
			appendStringInfoString(out, "null");
			break;
		case jbvString:
			escape_json(out, pnstrdup(v->val.string.val, v->val.string.len));
			break;
		case jbvNumeric:
			appendStringInfoString(out, numeric_text(v->val.numeric));
			break;
		case jbvBool:
			appendStringInfoString(out, v->val.boolean ? "true" : "false");
			break;
		default:
			Assert(v->type == jbvBinary);
			(void) JsonbToCString(out, v->val.binary.data, v->val.binary.len);
			break;
	}
}

/* Text of a value the type does not say more about. */
static char *
plain_text(const JsonbValue *v)
{
	StringInfoData out;

	if (v->type == jbvString)
		return pnstrdup(v->val.string.val, v->val.string.len);
	initStringInfo(&out);
	append_json(&out, v);
	return out.data;
}

/* Quoted for an array or row literal, both of which undo it the same way. */
static void
append_quoted(StringInfo out, const char *text)
{
	appendStringInfoChar(out, '"');
	for (const char *p = text; *p != '\0'; p++)
	{
		if (*p == '"' || *p == '\\')
			appendStringInfoChar(out, '\\');
		appendStringInfoChar(out, *p);
	}
	appendStringInfoChar(out, '"');
}

static bool
is_container(const JsonbValue *v, bool array)
{
	if (v->type != jbvBinary)
		return false;
	return array ? JsonContainerIsArray(v->val.binary.data)
		: JsonContainerIsObject(v->val.binary.data);
}

static void
append_array(StringInfo out, const SagaType *type, const JsonbValue *v)
{
	JsonbContainer *array = v->val.binary.data;
	uint32		n = JsonContainerSize(array);

	appendStringInfoChar(out, '{');
	for (uint32 i = 0; i < n; i++)
	{
		JsonbValue *elem = getIthJsonbValueFromContainer(array, i);

		if (i > 0)
			appendStringInfoChar(out, type->delim);
		if (elem->type == jbvNull)
			appendStringInfoString(out, "NULL");
		else if (is_container(elem, true) && type->elem->kind != SAGA_TYPE_JSON)
			append_array(out, type, elem);	/* a further dimension */
		else
			append_quoted(out, saga_value_text(type->elem, elem));
	}
	appendStringInfoChar(out, '}');
}

static void
append_row(StringInfo out, const SagaType *type, const JsonbValue *v)
{
	appendStringInfoChar(out, '(');
	for (int i = 0; i < type->natts; i++)
	{
		const char *name = type->attnames[i];
		JsonbValue *attr;
		JsonbValue	buffer;

		if (i > 0)
			appendStringInfoChar(out, ',');
		attr = getKeyJsonValueFromContainer(v->val.binary.data,
											name, strlen(name), &buffer);
		if (attr != NULL && attr->type != jbvNull)
			append_quoted(out, saga_value_text(type->atts[i], attr));
	}
	appendStringInfoChar(out, ')');
}

char *
saga_value_text(const SagaType *type, const JsonbValue *v)
{
	StringInfoData out;

	if (v->type == jbvNull)
		return NULL;
	if (type == NULL || type->kind == SAGA_TYPE_SCALAR)
		return plain_text(v);

	initStringInfo(&out);
	if (type->kind == SAGA_TYPE_JSON)
		append_json(&out, v);
	else if (type->kind == SAGA_TYPE_ARRAY && is_container(v, true))
		append_array(&out, type, v);
	else if (type->kind == SAGA_TYPE_COMPOSITE && is_container(v, false))
		append_row(&out, type, v);
	else
		return plain_text(v);
	return out.data;
}

/* An array position: digits only, and not so many that they overflow. */
static bool
parse_position(const char *text, uint32 *position)
{
	size_t		len = strlen(text);

	if (len == 0 || len > 9 || strspn(text, "0123456789") != len)
		return false;
	*position = (uint32) atoi(text);
	return true;
}

/* Follow a path from a value; false where it leads nowhere. */
static bool
follow_value(const JsonbValue *from, int npath, char **path, JsonbValue *out)
{
	*out = *from;
	for (int i = 0; i < npath; i++)
	{
		JsonbValue *next = NULL;
		uint32		position;

		if (is_container(out, false))
			next = getKeyJsonValueFromContainer(out->val.binary.data,
												path[i], strlen(path[i]), NULL);
		else if (is_container(out, true) && parse_position(path[i], &position))
			next = getIthJsonbValueFromContainer(out->val.binary.data, position);
		if (next == NULL)
			return false;
		*out = *next;
	}
	return true;
}

static bool
follow_path(Jsonb *root, bool result, int npath, char **path, JsonbValue *out)
{
	JsonbValue	v;

	if (JB_ROOT_IS_SCALAR(root))
		return npath == 0 && JsonbExtractScalar(&root->root, out);
	v.type = jbvBinary;
	v.val.binary.data = &root->root;
	v.val.binary.len = VARSIZE(root) - VARHDRSZ;
	if (result)
		saga_http_result_body(npath, path, &v);
	return follow_value(&v, npath, path, out);
}

/* ISO 8601 in UTC, whatever the session's settings. */
static char *
timestamp_text(TimestampTz at)
{
	char	   *out = palloc(MAXDATELEN + 1);
	int			utc = 0;

	return JsonEncodeDateTime(out, TimestampTzGetDatum(at), TIMESTAMPTZOID, &utc);
}

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static char *
json_parameter(Jsonb *root, const SagaParam *param)
{
	JsonbValue	v;

	if (root == NULL || !follow_path(root, param->scope != SAGA_PARAM_INPUT,
									 param->npath, param->path, &v))
		return NULL;
	return saga_value_text(param->type_info, &v);
}

static char *
copy_or_null(const char *text)
{
	return text ? pstrdup(text) : NULL;
}

/* Which element this is, and the step of the for_each; 0 outside of one. */
static int
item_index(const SagaValues *values, int32 *owner)
{
	*owner = -1;
	if (values->state == NULL)
		return values->item_index;
	if (values->node < 0)
		return 0;
	return Max(0, saga_machine_number(values->state, values->node, true, owner));
}

static char *
item_parameter(const SagaParam *param, const SagaValues *values)
{
	int32		owner;
	int			index = item_index(values, &owner);
	Jsonb	   *items;
	JsonbValue *item;
	JsonbValue	v;

	if (values->state == NULL)
		return values->item != NULL &&
			follow_path(values->item, false, param->npath, param->path, &v)
			? saga_value_text(param->type_info, &v) : NULL;
	items = owner >= 0 && values->items != NULL ? values->items[owner] : NULL;
	if (items == NULL || !JB_ROOT_IS_ARRAY(items) ||
		(item = getIthJsonbValueFromContainer(&items->root, index)) == NULL ||
		!follow_value(item, param->npath, param->path, &v))
		return NULL;
	return saga_value_text(param->type_info, &v);
}

/* Of the innermost loop around the step; for the loop itself, those begun. */
static int
iteration(const SagaValues *values)
{
	int32		owner;
	const SagaState *state = values->state;

	if (state == NULL)
		return values->iteration;
	if (values->node < 0)
		return 0;
	if (state->graph->nodes[state->steps[values->node].node].kind == SAGA_NODE_LOOP)
		return state->steps[values->node].value;
	return Max(0, saga_machine_number(state, values->node, false, &owner));
}

static char *
system_parameter(const SagaParam *param, const SagaValues *values)
{
	int32		owner;

	switch ((SagaSystemName) param->index)
	{
		case SAGA_SYS_SAGA_ID:
			return uuid_text(&values->saga_id);
		case SAGA_SYS_SAGA_NAME:
			return copy_or_null(values->saga_name);
		case SAGA_SYS_SAGA_KEY:
			return copy_or_null(values->saga_key);
		case SAGA_SYS_STEP_NAME:
			return copy_or_null(values->step_name);
		case SAGA_SYS_ATTEMPT:
			return psprintf("%d", values->attempt);
		case SAGA_SYS_IDEMPOTENCY_KEY:
			return saga_idempotency_key(&values->saga_id, values->step_name,
										values->op);
		case SAGA_SYS_ACTION_KEY:
			return saga_idempotency_key(&values->saga_id, values->step_name,
										SAGA_OP_ACTION);
		case SAGA_SYS_CORRELATION:
			return copy_or_null(values->correlation);
		case SAGA_SYS_STARTED_BY:
			return copy_or_null(values->started_by);
		case SAGA_SYS_STARTED_AT:
			return timestamp_text(values->started_at);
		case SAGA_SYS_DEADLINE:
			return values->deadline == DT_NOEND ? NULL
				: timestamp_text(values->deadline);
		case SAGA_SYS_RESULT:
			if (values->result != NULL)
				return json_parameter(values->result, param);
			return values->results && values->node >= 0
				? json_parameter(values->results[values->node], param) : NULL;
		case SAGA_SYS_CAUSE:
			return copy_or_null(values->cause);
		case SAGA_SYS_ITEM:
			return item_parameter(param, values);
		case SAGA_SYS_ITEM_INDEX:
			return psprintf("%d", item_index(values, &owner));
		case SAGA_SYS_ITERATION:
			return psprintf("%d", iteration(values));
		case SAGA_SYS_CALLBACK_TOKEN:
			return copy_or_null(values->callback_token);
	}
	return NULL;
}

/* The run of a node that is meant: a step, or without a state the node. */
static int
step_of(const SagaParam *param, const SagaValues *values)
{
	return values->state == NULL ? param->index
		: saga_machine_seen_from(values->state, values->node, param->index);
}

static char *
step_result(const SagaParam *param, const SagaValues *values)
{
	int			step = step_of(param, values);

	return values->results != NULL && step >= 0
		? json_parameter(values->results[step], param) : NULL;
}

static char *
step_failed(const SagaParam *param, const SagaValues *values)
{
	int			step = step_of(param, values);

	return pstrdup(values->state != NULL && step >= 0 &&
				   values->state->steps[step].status == SAGA_STEP_FAILED
				   ? "true" : "false");
}

void
saga_template_bind(const SagaTemplate *tmpl, const SagaValues *values,
				   char **out)
{
	for (int i = 0; i < tmpl->nparams; i++)
	{
		const SagaParam *param = &tmpl->params[i];

		switch (param->scope)
		{
			case SAGA_PARAM_SYSTEM:
				out[i] = system_parameter(param, values);
				break;
			case SAGA_PARAM_INPUT:
				out[i] = json_parameter(values->input, param);
				break;
			case SAGA_PARAM_STEP:
				out[i] = step_result(param, values);
				break;
			case SAGA_PARAM_STEP_FAILED:
				out[i] = step_failed(param, values);
				break;
		}
	}
	if (tmpl->kind == SAGA_TEMPLATE_HTTP)
		saga_http_encode(tmpl, out);
}

char *
saga_idempotency_key(const pg_uuid_t *saga_id, const char *step, SagaOp op)
{
	return psprintf("%s/%s/%s", uuid_text(saga_id), step ? step : "",
					op == SAGA_OP_UNDO ? "undo" :
					op == SAGA_OP_HOOK ? "hook" : "action");
}
