"""What the login pages say, in Chinese and English, and scopes put into words a patient understands."""

from __future__ import annotations

import re
from typing import Final

from fhir_server.auth.authorization import described

WORDS: Final[dict[str, dict[str, str]]] = {
    "en": {
        "lang": "en",
        "log_in": "Log in",
        "for_app": "The app “{app}” asks you to log in.",
        "name": "User name",
        "password": "Password",
        "problem": "Error: ",
        "wrong": "The user name or the password is not right.",
        "too_many": "Too many attempts. Try again in a few minutes.",
        "choose_patient": "Choose a patient",
        "patient_for": "Whose record shall “{app}” open?",
        "search_name": "Name",
        "search": "Search",
        "patients": "Patients",
        "male": "male",
        "female": "female",
        "other": "other",
        "unknown": "unknown",
        "no_patients": "No patient found.",
        "more_patients": "Only {number} are shown; search for the name to find others.",
        "choose_visit": "Choose a visit",
        "visit_for": "Which visit is “{app}” opened for?",
        "visits": "Visits",
        "no_visit": "None of them",
        "no_date": "without a date",
        "AMB": "outpatient",
        "EMER": "emergency",
        "IMP": "inpatient",
        "HH": "at home",
        "VR": "remote",
        "go_on": "Continue",
        "allow_access": "Allow access?",
        "app_asks": "“{app}” asks for access, on behalf of {user}.",
        "about": "It is about the record of",
        "it_may": "The app may (take away what you do not want)",
        "until": "You can take this back at any time by asking whoever runs this server.",
        "allow": "Allow",
        "deny": "Do not allow",
        "other_user": "Log in as somebody else",
        "other_patient": "Choose another patient",
        "not_possible": "This is not possible",
        "back_to_app": "Close this page and start again from the app. If it happens again, tell the app's makers.",
        "openid": "know who you are",
        "fhirUser": "know your record as a user",
        "profile": "know your profile",
        "launch": "know which patient was open when it was started",
        "launch/patient": "know which patient was chosen",
        "launch/encounter": "know the current visit",
        "offline_access": "keep its access when you are not there",
        "online_access": "keep its access while you are logged in",
        "patient": "this patient's",
        "user": "all that you may see:",
        "everything": "data of every kind",
        "only": "only where",
        "c": "add",
        "r": "read",
        "u": "change",
        "d": "delete",
        "s": "search",
    },
    "zh": {
        "lang": "zh-CN",
        "log_in": "登录",
        "for_app": "应用“{app}”请您登录。",
        "name": "用户名",
        "password": "密码",
        "problem": "出错：",
        "wrong": "用户名或密码不正确。",
        "too_many": "尝试次数过多，请几分钟后再试。",
        "choose_patient": "选择患者",
        "patient_for": "“{app}”要打开哪位患者的记录？",
        "search_name": "姓名",
        "search": "搜索",
        "patients": "患者",
        "male": "男",
        "female": "女",
        "other": "其他",
        "unknown": "未知",
        "no_patients": "没有找到患者。",
        "more_patients": "只显示了 {number} 位；请按姓名搜索其他患者。",
        "choose_visit": "选择就诊",
        "visit_for": "“{app}”针对哪一次就诊？",
        "visits": "就诊",
        "no_visit": "都不是",
        "no_date": "无日期",
        "AMB": "门诊",
        "EMER": "急诊",
        "IMP": "住院",
        "HH": "上门",
        "VR": "远程",
        "go_on": "继续",
        "allow_access": "允许访问吗？",
        "app_asks": "“{app}”请求以 {user} 的名义访问。",
        "about": "涉及的记录属于",
        "it_may": "该应用可以（不愿意的请取消勾选）",
        "until": "您可以随时联系本服务器的管理者撤回授权。",
        "allow": "允许",
        "deny": "不允许",
        "other_user": "换一个用户登录",
        "other_patient": "选择另一位患者",
        "not_possible": "无法完成",
        "back_to_app": "请关闭此页面，从应用重新开始。如果再次出现，请告知应用的开发者。",
        "openid": "知道您是谁",
        "fhirUser": "知道您的用户档案",
        "profile": "知道您的个人资料",
        "launch": "知道启动时打开的患者",
        "launch/patient": "知道所选的患者",
        "launch/encounter": "知道当前的就诊",
        "offline_access": "在您不在时继续访问",
        "online_access": "在您登录期间继续访问",
        "patient": "该患者的",
        "user": "您可以看到的",
        "everything": "各类数据",
        "only": "仅限",
        "c": "新增",
        "r": "读取",
        "u": "修改",
        "d": "删除",
        "s": "搜索",
    },
}


# The records people know, each with its English and Chinese name. Others are called as in FHIR.
KINDS: Final[dict[str, dict[str, str]]] = {
    "AllergyIntolerance": {"en": "allergies", "zh": "过敏信息"},
    "Appointment": {"en": "appointments", "zh": "预约"},
    "CarePlan": {"en": "care plans", "zh": "照护计划"},
    "CareTeam": {"en": "care teams", "zh": "照护团队"},
    "Condition": {"en": "diagnoses and problems", "zh": "诊断和健康问题"},
    "Consent": {"en": "consents", "zh": "知情同意"},
    "Coverage": {"en": "insurance", "zh": "医保"},
    "DiagnosticReport": {"en": "reports", "zh": "检查检验报告"},
    "DocumentReference": {"en": "documents", "zh": "文档"},
    "Encounter": {"en": "visits", "zh": "就诊记录"},
    "FamilyMemberHistory": {"en": "family history", "zh": "家族史"},
    "Goal": {"en": "goals", "zh": "目标"},
    "Immunization": {"en": "immunizations", "zh": "预防接种"},
    "MedicationRequest": {"en": "prescriptions", "zh": "处方"},
    "MedicationStatement": {"en": "medications taken", "zh": "用药情况"},
    "Observation": {"en": "measurements and results", "zh": "测量和检查结果"},
    "Patient": {"en": "personal details", "zh": "个人信息"},
    "Procedure": {"en": "procedures", "zh": "手术和操作"},
    "QuestionnaireResponse": {"en": "answers to questionnaires", "zh": "问卷答复"},
    "RiskAssessment": {"en": "risk assessments", "zh": "风险评估"},
    "ServiceRequest": {"en": "orders and referrals", "zh": "检查申请和转诊"},
    "Task": {"en": "tasks", "zh": "任务"},
}

# What may go wrong before an app is known to which the user could be sent back.
PROBLEMS: Final[dict[str, str]] = {
    "This login has expired or was begun in another browser; start again from the app": (
        "此次登录已过期，或是在另一个浏览器中开始的；请从应用重新开始。"
    ),
    "This app is not registered here": "此应用未在本服务器注册。",
    "The app's redirect_uri is not one it is registered with": "此应用给出的 redirect_uri 不是它注册的地址。",
    "A parameter of the authorization request occurs twice": "授权请求中有重复的参数。",
    "The form is not valid": "表单无效。",
    "The request is larger than 64 KiB": "请求超过 64 KiB。",
    "The body must be application/x-www-form-urlencoded": "请求体必须是 application/x-www-form-urlencoded。",
    "Too many logins at once; try again in a moment": "同时登录的人过多，请稍后再试。",
}


_WEIGHED = re.compile(r"([a-z][a-z0-9-]*)(?:\s*;\s*q=([01](?:\.[0-9]{0,3})?))?(?=[\s,]|$)")


def told(problem: str, lang: str) -> str:
    return PROBLEMS.get(problem, problem) if lang == "zh" else problem


def language(accepted: str) -> str:
    """`zh` or `en`, from ui_locales (the first named) or Accept-Language (the greatest weight, RFC 9110 12.5.4)."""
    chosen, most = "en", 0.0
    for tag, weight in _WEIGHED.findall(accepted.lower()):
        start, weighs = tag[:2], float(weight or 1)
        if start in WORDS and weighs > most:
            chosen, most = start, weighs
    return chosen


def in_words(scope: str, lang: str) -> str:
    words = WORDS[lang]
    known = described(scope)
    if known is None:
        return words.get(scope, scope)
    comma, colon, gap, left, right = ("、", "：", "", "（", "）") if lang == "zh" else (", ", " ", " ", " (", ")")
    verbs = comma.join(words[letter] for letter in known.permissions)
    kind = KINDS.get(known.resource_type, {}).get(lang, known.resource_type)
    if known.resource_type == "*":
        kind = words["everything"]
    text = f"{verbs}{colon}{words.get(known.context, '')}{gap}{kind}"
    if known.parameters:
        which = " & ".join(f"{name} = {value}" for name, value in known.parameters)
        text += f"{left}{words['only']} {which}{right}"
    return text
